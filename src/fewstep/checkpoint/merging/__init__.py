"""Checkpoints mixed into one: what a merged one was made of (`merge_tree`)."""

from fewstep.checkpoint.merging.tree import Ingredient, MergeTree, merge_tree

__all__ = ["Ingredient", "MergeTree", "merge_tree"]
