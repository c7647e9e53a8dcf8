"""What every layer speaks of: batches, signals, keys, time, errors. Imports no other layer."""
