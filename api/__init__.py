"""Vocabulary that all programs share: names, quantities, errors, custom resources and the way to the API server."""
