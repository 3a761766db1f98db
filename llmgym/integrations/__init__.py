"""Adapters to other libraries: optional, imported only when used."""
