# What `config.system.build.toplevel` of a NixOS host is built to, in the shape of the real one: a function
# of the host's settings. Each host's system is its own, as a real one is by its name.
{ system, version, settings }:
let
  defaults = {
    root = "/nowhere";
    units = "/run/systemd/system";
    name = "host";
    kernel = "6.12.1";
    init = "systemd 257";
    revision = "";
    fail = "";
    failing_units = [ ];
    stops = [ ];
    restarts = [ ];
    reloads = [ ];
    starts = [ ];
    packages = [ ];
    activation_s = "0";
    boot_s = "0";
    note = "";
    cuts_network = false;
    breaks_boot = false;
    answers = true;
  };
  c = defaults // settings;
  flag = value: if value then "yes" else "";
  # nothing of the machine's but these two places, which the lab's hosts have too
  build = name: script: extra: derivation ({
    inherit name system;
    builder = "/bin/sh";
    args = [ "-ec" ("PATH=/usr/bin:/bin\n" + script) ];
  } // extra);
  package = name: build name ''
    mkdir -p $out/bin
    head -c 20000 /dev/zero > $out/bin/$name
  '' { };
  kernel = build "linux-${c.kernel}" ''
    mkdir -p $out/lib/modules/$release
    echo kernel $release > $out/bzImage
  '' { release = c.kernel; };
  initrd = build "initrd-linux-${c.kernel}" ''
    mkdir -p $out
    echo initrd $release > $out/initrd
  '' { release = c.kernel; };
in build "nixos-system-${c.name}-${version}" ''
  [ "$fail" != BUILD ] || { echo "configuration check failed: services.web.port is no port" >&2; exit 1; }
  mkdir -p $out/bin $out/sw/bin $out/sw/packages $out/etc/systemd/system $out/specialisation $out/lab
  printf %s "$version" > $out/nixos-version
  printf %s "$init" > $out/init-interface-version
  printf %s "$system" > $out/system
  echo "init=$out/init" > $out/kernel-params
  ln -s $kernel/bzImage $out/kernel
  ln -s $kernel $out/kernel-modules
  ln -s $initrd/initrd $out/initrd
  for package in $packages; do ln -s $package $out/sw/packages/; done
  for setting in failing_units boot_s cuts_network breaks_boot answers; do
    eval "printf %s \"\$$setting\"" > $out/lab/$setting
  done
  printf %s "$note" > $out/lab/note
  sed "s|@version@|$version|; s|@revision@|$revision|" $versionScript > $out/sw/bin/nixos-version
  sed "s|@out@|$out|; s|@root@|$root|; s|@units@|$units|; s|@fail@|$fail|; s|@activation_s@|$activation_s|g
    s|@stops@|$stops|; s|@restarts@|$restarts|; s|@reloads@|$reloads|; s|@starts@|$starts|" \
    $switchScript > $out/bin/switch-to-configuration
  chmod 755 $out/bin/switch-to-configuration $out/sw/bin/nixos-version
'' {
  inherit kernel initrd version;
  inherit (c) root units init revision fail activation_s boot_s note;
  inherit (c) failing_units stops restarts reloads starts;
  packages = map package c.packages;
  cuts_network = flag c.cuts_network;
  breaks_boot = flag c.breaks_boot;
  answers = flag c.answers;
  versionScript = ./nixos-version.sh;
  switchScript = ./switch.sh;
}
