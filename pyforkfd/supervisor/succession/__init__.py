"""The hand-over from a supervisor to its successor: record, keeper, hot upgrade."""
