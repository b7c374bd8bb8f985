"""What outlives a supervisor: keeper, hand-over of descriptors, hot upgrade."""
