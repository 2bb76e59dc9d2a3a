#!/bin/sh
# sh tests/install.sh slurm chromium: Debian's packages that some tests need, if this is root on Debian and they are not
# there; no daemon is left running. Where it cannot, it says why and ends well: the tests then skip.
set -eu

needed() { # program, …: those that are not here
    for program in "$@"; do
        command -v "$program" > /dev/null || [ -x "/usr/sbin/$program" ] || echo "$program"
    done
}

packages=
for tests in "$@"; do
    case $tests in
        # Only what the daemons need: no accounting database, no systemd.
        slurm) [ -z "$(needed slurmctld slurmd sbatch munged)" ] || packages="$packages slurmctld slurmd slurm-client munge" ;;
        chromium) [ "$(needed chromium chromium-browser google-chrome | wc -l)" -lt 3 ] || packages="$packages chromium" ;;
        *) echo "error: sh tests/install.sh [slurm] [chromium]" >&2; exit 2 ;;
    esac
done
[ -n "$packages" ] || exit 0

skip() {
    echo "Tests that need$packages will be skipped: $1"
    exit 0
}
command -v apt-get > /dev/null || skip "this is no Debian; install them by its own means"
[ "$(id -u)" = 0 ] || skip "installing needs root (apt-get install$packages)"

# Debian starts daemons as it installs them. A policy that denies it, for as long as this script runs; containers
# usually have one already.
policy=/usr/sbin/policy-rc.d
said=$(mktemp)
trap 'rm -f "$said"' EXIT
if [ ! -e "$policy" ]; then
    trap 'rm -f "$said" "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
ls /var/lib/apt/lists/*Packages* > /dev/null 2>&1 || apt-get update --quiet=2 || skip "apt-get update failed"
echo "Installing$packages"
apt-get install --yes --quiet=2 --no-install-recommends $packages > "$said" 2>&1 || {
    tail -5 "$said"
    skip "apt-get install failed"
}
