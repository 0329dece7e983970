"""From a teacher of many steps to a student of few: roles, targets, losses, stages, and a file per method."""
