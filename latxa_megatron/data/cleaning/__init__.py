"""`latxa data clean`: sources without duplicates, other languages and evaluation items. clean.py is where to start reading."""
