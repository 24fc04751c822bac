"""Side by side timings of no cache, django-cachalot, django-cacheops and ormcache."""
