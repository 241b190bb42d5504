"""Results of a ladder for people: a terminal table and a page, both of the report as a dict (docs/formats.md)."""
