"""The words: message, identity, environment, macros."""
