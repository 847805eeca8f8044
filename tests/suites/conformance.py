"""Conformance: pjdfstest as root and as an ordinary user, and fsx."""

import functools
import grp
import os
import pwd
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster import Onlooker
from harness import Skipped, apt, crate, expect, run

FEATURES = ("posix_fallocate", "rename_ctime", "stat_st_birthtime", "utime_now", "utimensat")
# Why a test may be skipped: an ordinary user may not do it; mount(8) remounts through a helper, which may not be installed;
# pathconf(3) knows no most links of a FUSE file system.
EXPLAINED = ("requires root privileges", "CAP_SYS_ADMIN", "Remounts", "LINK_MAX")


def cases(report, cluster, faults):
    mount = cluster.mount("mnt")
    cluster.begin(Onlooker(cluster.mount("other").point))
    for number in range(3 if faults else 1):
        report.case(f"pjdfstest-root-{number}", functools.partial(pjdfstest, mount, pwd.getpwnam("root")))
        report.case(f"pjdfstest-user-{number}", functools.partial(pjdfstest, mount, pwd.getpwnam("nobody")))
    report.case("fsx", functools.partial(fsx_at_once, mount), deadline=3600)


def account(name):
    user = pwd.getpwnam(name)
    return f'["{name}", "{grp.getgrgid(user.pw_gid).gr_name}"]'


def pjdfstest(mount, user):
    if os.geteuid() != 0:
        raise Skipped("needs root to become other users")
    if not Path("/usr/include/sys/acl.h").exists():
        apt("libacl1-dev")
    built = crate("pjdfstest", "0.2.2")
    # Short, because the name of a socket has 107 bytes at most; and everybody may pass.
    folder = tempfile.mkdtemp(prefix="p", dir=mount.point)
    os.chmod(folder, 0o755)
    os.chown(folder, user.pw_uid, user.pw_gid)
    # An ordinary user cannot reach the cache folder of root.
    program, configuration = (mount.cluster.folder / name for name in ("pjdfstest", "pjdfstest.toml"))
    shutil.copy(built, program)
    features = "".join(f"{feature} = {{}}\n" for feature in FEATURES)
    configuration.write_text(f"[features]\n{features}[settings]\nnaptime = 0.02\nallow_remount = false\n"
                             f"[dummy_auth]\nentries = [{account('nobody')}, {account('daemon')}]\n")
    output = run(program, "-c", configuration, "-s", "/dev/shm", "-p", folder, codes=(0, 1), user=user,
                 env={**os.environ, "NO_COLOR": "1"})
    shutil.rmtree(folder)
    return judge(re.sub(r"\x1b\[[0-9;]*m", "", output))


def judge(output):
    """The counts of pjdfstest, if none failed and every skip has a reason that is known."""
    counts = re.search(r"(\d+) failed, (\d+) skipped, (\d+) passed", output)
    expect(counts, f"no summary: {output[-300:]}")
    failed, skipped, passed = map(int, counts.groups())
    told = re.findall(r"^(\S+) +(FAILED|skipped)\n\s+(.*)", output, re.MULTILINE)
    wrong = [f"{name}: {why}" for name, how, why in told
             if how == "FAILED" or not any(reason in why for reason in EXPLAINED)]
    expect(failed == 0 and passed > 0 and not wrong, f"{failed} failed, {passed} passed; {'; '.join(wrong)[:800]}")
    return f"{passed} passed, {skipped} skipped"


def fsx_at_once(mount):
    """Three files at once, each with a seed of its own."""
    with ThreadPoolExecutor() as pool:
        return f"3 x {list(pool.map(functools.partial(fsx, mount), (1, 2, 3)))[0]}"


def fsx(mount, seed):
    """200,000 random operations on one file, mapped reads and writes among them; every read is compared with what was written."""
    program, artifacts = crate("fsx", "0.3.2"), mount.cluster.folder / f"fsx-{seed}"
    artifacts.mkdir()
    weights = {"close_open": 1, "invalidate": 1, "mapread": 10, "mapwrite": 10, "read": 10, "write": 10, "truncate": 4,
               "fsync": 1, "fdatasync": 1, "sendfile": 2, "posix_fadvise": 1, "posix_fallocate": 1, "punch_hole": 1,
               "copy_file_range": 2}
    configuration = artifacts / "fsx.toml"
    # With an msync(2) after each mapped write there would be three times as many commits as there are now.
    configuration.write_text(f"flen = {1 << 20}\nnomsyncafterwrite = true\n[opsize]\nmin = 0\nmax = {1 << 16}\n[weights]\n" +
                             "".join(f"{name} = {weight}\n" for name, weight in weights.items()))
    output = run(program, "-f", configuration, "-N", 200_000, "-S", seed, "-P", artifacts, mount.point / f"fsx-{seed}",
                 deadline=3500)
    expect("All operations completed A-OK" in output, output[-400:])
    return "200,000 operations"
