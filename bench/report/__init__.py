"""What a run found: as JSON, as tables, as plots and a page, beside another run."""
