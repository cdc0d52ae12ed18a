"""Validates manifests with the strict schemas of Kubernetes in the package kubernetes-validate.

The function of that package reads all definitions of a version for each document, which takes a second. This module
reads the definitions once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

FOLDER = "kubernetes-json-schema/v{}.0-local-strict/{}.json"


@cache
def _definitions(version: str) -> Registry:
    """Return the definitions of a version such as 1.34. `crawl` stores the references that it finds, so that each is
    read once."""
    contents = schema_contents(FOLDER.format(version, "_definitions"), version)
    return (Resource.from_contents(contents) @ Registry()).crawl()


@cache
def _validator(kind: str, api_version: str, version: str) -> Draft202012Validator:
    group, _, number = api_version.rpartition("/")
    name = "-".join(word for word in (kind.lower(), group.split(".")[0], number) if word)
    schema = schema_contents(FOLDER.format(version, name), version)
    return Draft202012Validator(schema, registry=(Resource.from_contents(schema) @ _definitions(version)).crawl())


def validate(document: dict[str, Any], version: str) -> None:
    """Raise jsonschema's ValidationError for a wrong document, and FileNotFoundError for a kind without a schema."""
    _validator(document["kind"], document["apiVersion"], version).validate(document)
