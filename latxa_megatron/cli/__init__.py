"""The command `latxa`: main.py has all but the data commands, which data.py has."""
