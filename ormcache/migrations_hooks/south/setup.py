"""Packs ormcache_south.py for the Python of an old project; ormcache itself is packed above."""

from setuptools import setup

setup(
    name="ormcache-south",
    version="0.1.0",
    description="Tells ormcache of the migrations and writes of a Django 1.6 project with South",
    author="ormcache contributors",
    license="BSD-3-Clause",
    py_modules=["ormcache_south"],
    python_requires=">=2.7",
)
