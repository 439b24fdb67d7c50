"""Any encoder or head over scenes that do not fit in memory."""
