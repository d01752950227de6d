"""Locks: direct dependencies are in them as asked for, and everything has its hash."""

from __future__ import annotations

import json

import pytest

from rules.evidence.flake import flake_inputs
from rules.evidence.locks import Dependency, judge_flake, judge_requirements
from rules.finding import Result

GOOD = Dependency(name="httpx", specifier=">=0.28", pinned=("0.28.1",), satisfied=True)
HASHED = {"httpx": True}


@pytest.mark.parametrize(
    ("changed", "pins", "result"),
    [
        ({}, HASHED, Result.PASSED),
        ({"pinned": (), "satisfied": False}, {"other": True}, Result.FAILED),
        ({"pinned": ("0.27.0",), "satisfied": False}, HASHED, Result.FAILED),
        ({}, {"httpx": False}, Result.FAILED),
        ({}, {"httpx": True, "unhashed": False}, Result.FAILED),
        ({}, {}, Result.UNKNOWN),
        ({"pinned": (), "optional": True}, {"other": True}, Result.UNKNOWN),  # nothing else is asked for
        ({"pinned": ("0.27.0",), "satisfied": False, "optional": True}, HASHED, Result.FAILED),
    ],
)
def test_a_lock_holds_what_its_sources_ask_for(changed, pins, result):
    assert judge_requirements([GOOD.model_copy(update=changed)], pins).result is result


def test_words_name_what_is_locked_and_what_is_asked_for():
    old = GOOD.model_copy(update={"pinned": ("0.27.0",), "satisfied": False})
    assert (
        "httpx is locked at 0.27.0, its source asks for >=0.28" in judge_requirements([old], HASHED).evidence
    )


FLAKE = """\
{
  description = "inputs = { not.this }";  # inputs.nor.this.url = "x";
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.11";
  /* inputs.neither.url = "x"; */
  inputs = {
    sops-nix = {
      url = "github:Mic92/sops-nix";
      inputs.nixpkgs.follows = "nixpkgs";
    };
    "quoted".url = "path:./x";
    flake-utils.url = "github:numtide/flake-utils";
  };
  outputs = { self, nixpkgs, ... }@inputs: let
    inputs.inside = 1;
    text = ''
      inputs.text = { ${nixpkgs} ''${escaped} }
    '';
  in {
    inputs.result = [ { inputs.listed = 1; } ];
    packages = { inputs = { a = 1; }; };
  };
}
"""

INPUTS = {"nixpkgs", "sops-nix", "quoted", "flake-utils"}


def lock(**changed):
    nodes = {name: {"locked": {"narHash": "sha256-x", "type": "github"}} for name in INPUTS}
    nodes["sops-nix"]["inputs"] = {"nixpkgs": ["nixpkgs"]}
    nodes["root"] = {"inputs": {name: name for name in INPUTS}}
    return json.dumps({"nodes": {**nodes, **changed}, "root": "root", "version": 7})


def test_a_flakes_inputs_are_found_and_nothing_else():
    assert flake_inputs(FLAKE) == INPUTS


@pytest.mark.parametrize("text", ["{ inputs = { ", "}", '{ inputs."${x}".url = "y"; }'])
def test_a_flake_that_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        flake_inputs(text)


@pytest.mark.parametrize(
    ("changed", "inputs", "result"),
    [
        ({}, INPUTS, Result.PASSED),
        ({}, {*INPUTS, "new"}, Result.FAILED),
        ({}, INPUTS - {"quoted"}, Result.FAILED),
        ({"quoted": {"original": {}}}, INPUTS, Result.FAILED),
        ({"deep": {}}, INPUTS, Result.FAILED),
        ({"quoted": {"locked": {"narHash": "x"}, "inputs": {"a": "gone"}}}, INPUTS, Result.FAILED),
    ],
)
def test_a_flakes_lock_holds_each_input_with_its_hash(changed, inputs, result):
    assert judge_flake(lock(**changed), inputs).result is result


def test_a_flake_without_inputs_is_unknown():
    assert judge_flake('{"nodes": {"root": {}}, "root": "root"}', set()).result is Result.UNKNOWN


@pytest.mark.parametrize("content", ["", "{}", '{"nodes": {}, "root": "root"}'])
def test_what_is_no_flake_lock_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"."):
        judge_flake(content, INPUTS)
