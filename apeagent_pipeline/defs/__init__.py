"""The Dagster layer: assets, checks, IO manager, jobs. The only room that knows Dagster.

An asset here reads its inputs, calls one domain function and returns its result; arithmetic, training and statistics
belong into the domain rooms. ``build.py`` puts everything together, ``storage.py`` says how artifacts lie on disk and
``staleness.py`` which of them are out of date.
"""
