#!/bin/sh
# What a NixOS says of itself; the real one's words and exit codes.
case "${1-}" in
  --help) exec echo "usage: nixos-version [--hash|--revision|--configuration-revision|--json]" ;;
  --hash | --revision) echo "0123456789abcdef0123456789abcdef01234567" ;;
  --configuration-revision)
    [ -n "@revision@" ] || { echo "$0: configuration revision is unknown" >&2; exit 1; }
    echo "@revision@" ;;
  --json)
    if [ -n "@revision@" ]; then
      echo '{"configurationRevision":"@revision@","nixosVersion":"@version@","nixpkgsRevision":"0123456789abcdef0123456789abcdef01234567"}'
    else
      echo '{"nixosVersion":"@version@","nixpkgsRevision":"0123456789abcdef0123456789abcdef01234567"}'
    fi ;;
  *) echo "@version@ (Yarara)" ;;
esac
