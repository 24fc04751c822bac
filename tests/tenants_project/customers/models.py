"""Tables of the public schema only."""

from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):
    name = models.CharField(max_length=100)
    auto_drop_schema = True


class Domain(DomainMixin):
    pass


class Country(models.Model):
    name = models.CharField(max_length=100)
