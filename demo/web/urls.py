"""The addresses of the pages."""

from django.urls import path

from demo.web import views

urlpatterns = [
    path("", views.countries, name="countries"),
    path("countries/<str:iso>/", views.country, name="country"),
    path("cities/<int:geoname>/", views.city, name="city"),
    path("cities/<int:geoname>/grow/", views.grow, name="grow"),
    path("capitals/", views.capitals, name="capitals"),
    path("search/", views.search, name="search"),
]

handler404 = views.not_found
