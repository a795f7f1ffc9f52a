"""The resources of the contract: untrusted YAML to frozen, validated values; every mistake names its field.

This package imports nothing by itself, so that :mod:`keyferry.spec.template` and :mod:`keyferry.spec.problem` can be
used where pydantic is not wanted.
"""
