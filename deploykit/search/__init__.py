"""The fastest model within an accuracy budget: recipes tried one after the other, the best so far always at hand."""
