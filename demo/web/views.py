"""The pages. Each asks the questions of ``demo.questions``, named for the panel."""

from __future__ import annotations

from django.db import transaction
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from demo import questions
from demo.models import City, Country
from demo.web.middleware import leave_note
from demo.web.panel import PanelRequest

INHABITANTS = 1000


@require_safe
def countries(request: PanelRequest) -> HttpResponse:
    ask = request.panel.ask
    return render(
        request,
        "demo/countries.html",
        {
            "countries": ask("all countries with their city counts", questions.country_list),
            "world": ask("all cities: count, sum, maximum", questions.world),
            "metropolises": ask(
                "countries with a city over 5 million", questions.metropolis_countries
            ),
            "recent": ask("cities changed in 30 days, by Now()", questions.recently_changed),
        },
    )


@require_safe
def country(request: PanelRequest, iso: str) -> HttpResponse:
    ask = request.panel.ask
    try:
        found = ask(
            "the country, its languages and neighbours", questions.country_with_relations, iso
        )
    except Country.DoesNotExist as error:
        raise Http404 from error
    return render(
        request,
        "demo/country.html",
        {
            "country": found,
            "cities": ask("its 20 largest cities", questions.largest_cities, iso),
            "figures": ask("its cities: count, sum, average", questions.city_figures, iso),
            "crowded": ask("has it a city over 10 million?", questions.is_crowded, iso),
        },
    )


@require_safe
def city(request: PanelRequest, geoname: int) -> HttpResponse:
    ask = request.panel.ask
    try:
        found = ask("the city, its country and other names", questions.city, geoname)
    except City.DoesNotExist as error:
        raise Http404 from error
    return render(
        request,
        "demo/city.html",
        {
            "city": found,
            "inhabitants": INHABITANTS,
            "capital": ask("is it a capital?", questions.seat_of, geoname),
            "cities": ask(
                "the country's 20 largest cities", questions.largest_cities, found.country_id
            ),
        },
    )


@require_POST
def grow(request: PanelRequest, geoname: int) -> HttpResponse:
    """Add inhabitants to a city and go back to its page, which tells what that invalidated."""
    try:
        request.panel.ask("city.save()", _grow, geoname)
    except City.DoesNotExist as error:
        raise Http404 from error
    response = redirect("city", geoname)
    entry = request.panel.entries[-1]
    leave_note(
        response,
        {
            "name": entry.name,
            "tables": entry.record.invalidated,
            "milliseconds": entry.milliseconds,
        },
    )
    return response


def _grow(geoname: int) -> None:
    # The lock keeps two clicks at once from being counted as one.
    with transaction.atomic():
        found = City.objects.select_for_update().get(pk=geoname)
        found.population += INHABITANTS
        found.changed_at = timezone.now()
        found.save()


@require_safe
def capitals(request: PanelRequest) -> HttpResponse:
    return render(
        request,
        "demo/capitals.html",
        {"capitals": request.panel.ask("all capitals", questions.capitals)},
    )


@require_safe
def search(request: PanelRequest) -> HttpResponse:
    term = request.GET.get("q", "").strip()[:100]
    found = (
        request.panel.ask(f"cities with {term!r} in the name", questions.search, term)
        if term
        else None
    )
    return render(request, "demo/search.html", {"term": term, "found": found})


def not_found(request: PanelRequest, exception: Exception) -> HttpResponse:
    return render(request, "demo/not_found.html", status=404)
