"""From scores of items to numbers that can be trusted: intervals, paired differences, power."""
