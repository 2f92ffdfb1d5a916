"""Made-up inputs for all that reads what strangers wrote: for scripts/fuzz.py and tests."""
