# Stand-in for <nixpkgs/nixos>: the system that a host's configuration describes.
{ configuration ? import <nixos-config>, system ? builtins.currentSystem }:
let
  module = if builtins.isFunction configuration then configuration { config = { }; lib = { }; pkgs = { }; }
    else configuration;
  toplevel = import ../system.nix {
    inherit system;
    version = builtins.readFile ../version;
    settings = module.lab or { };
  };
in {
  config.system.build.toplevel = toplevel;
  system = toplevel;
}
