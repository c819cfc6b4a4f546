"""The sending side: many calls at once. Imports neither worker nor pool."""
