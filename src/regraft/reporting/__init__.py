"""Pictures, charts, tables and pages."""
