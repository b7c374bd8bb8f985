"""The state machine: events in, actions out; pure, without I/O and without a clock."""
