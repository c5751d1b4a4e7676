"""What of this machine would slow a run or end it: a line for each thing, with its mend. Start reading at examine.py."""
