"""Workbook: notebooks as programs."""
