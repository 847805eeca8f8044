"""A cluster of real processes on loopback, its mounts, and the faults that come over it."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from harness import Failed, expect, run, wait_until

METAS, STORES = 3, 6
# What names and attributes may be old by (docs/semantics.md), and some slack for a busy machine.
STALE_SECONDS = 1.5


class Node:
    """A process that is started again after it was killed."""

    def __init__(self, name, command, log):
        self.name, self.command, self.log, self.process = name, [str(part) for part in command], log, None
        self.start()

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def take_away(self, how):
        """With SIGKILL it is gone, with SIGSTOP it hangs."""
        expect(self.process.poll() is None, f"{self.name} ended by itself with {self.process.returncode}")
        self.process.send_signal(how)
        if how == signal.SIGKILL:
            self.process.wait()

    def bring_back(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        else:
            self.start()

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Mount:
    """The file system mounted on a folder by a process of its own, with a cache of its own."""

    def __init__(self, cluster, name, options=(), wrapper=()):
        self.cluster, self.point, self.cache = cluster, cluster.folder / name, cluster.folder / f"{name}.cache"
        self.command = [*wrapper, cluster.binary, "mount", self.point, "--cache-dir", self.cache, *options]
        self.log, self.process = cluster.folder / f"{name}.log", None
        self.point.mkdir()
        self.start()

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(part) for part in self.command], stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env=self.cluster.environment)
        wait_until(f"{self.point} is mounted", lambda: self.process.poll() is not None or os.path.ismount(self.point))
        expect(self.process.poll() is None, f"the mount ended: {self.log.read_text()[-400:]}")

    def stop(self):
        """Unmounts as a user does; everything is committed then, or this fails."""
        self.cluster.torchfs("umount", self.point)
        code = self.process.wait(timeout=30)
        expect(code == 0, f"the mount's process ended with {code}: {self.log.read_text()[-400:]}")

    def remount(self):
        """What is read from now on comes from the cluster: the cache is another one."""
        self.stop()
        shutil.rmtree(self.cache)
        self.start()

    def abort(self):
        """Whatever waits for this mount gets an error."""
        subprocess.run(["umount", "-l", self.point], stderr=subprocess.DEVNULL)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Cluster:
    """Three metadata and six storage nodes, 4+2, in a temporary folder."""

    def __init__(self, binary):
        self.binary, self.mounts, self.background, self.at_end, self.why = binary, [], [], [], None
        self.folder = Path(tempfile.mkdtemp(prefix="suite-"))
        os.chmod(self.folder, 0o755)
        pid = os.getpid()
        address = f"127.{1 + pid % 250}.{pid // 250 % 250}.1"
        metas = [f"{address}:{7100 + number}" for number in range(1, METAS + 1)]
        peers = ",".join(f"{number}={meta}" for number, meta in enumerate(metas, 1))
        self.environment = {**os.environ, "TORCHFS_META": ",".join(metas)}
        self.metas = [self.node(f"meta-{number}", "meta", "--id", number, "--listen", meta, "--peers", peers)
                      for number, meta in enumerate(metas, 1)]
        self.stores = [self.node(f"store-{number}", "store", "--listen", f"{address}:{7200 + number}", "--meta",
                                 ",".join(metas), "--domain", f"host=h{number}") for number in range(1, STORES + 1)]

    def node(self, name, *arguments):
        command = [self.binary, *arguments, "--data", self.folder / name]
        return Node(name, command, self.folder / f"{name}.log")

    def torchfs(self, *arguments, deadline=180):
        return run(self.binary, *arguments, deadline=deadline, env=self.environment)

    def status(self):
        """What the cluster says of itself, or nothing while it has no leader."""
        try:
            return json.loads(self.torchfs("status", "--json", deadline=30))
        except (Failed, ValueError):
            return None

    def is_whole(self):
        status = self.status()
        metas = [meta["state"] for meta in status["metas"]] if status else []
        stores = [store["state"] for store in status["stores"]] if status else []
        return sorted(metas) == ["follower"] * (METAS - 1) + ["leader"] and stores == ["up"] * STORES

    def wait_until_whole(self):
        wait_until("every node is up", self.is_whole)

    def leader(self):
        """The node that leads now."""
        found = []
        wait_until("there is a leader", lambda: found.append(self.status()) or (found[-1] and found[-1]["leader"]))
        return self.metas[found[-1]["leader"]["id"] - 1]

    def mount(self, name, options=(), wrapper=()):
        self.mounts.append(Mount(self, name, options, wrapper))
        return self.mounts[-1]

    def begin(self, background):
        self.background.append(background)
        background.start()

    def abort(self, why):
        """Ends all waiting on the mounts; `close` will say why."""
        self.why = why
        for mount in self.mounts:
            mount.abort()

    def close(self):
        """Unmounts everything and stops the nodes; fails if any of it had gone wrong before."""
        expect(not self.why, self.why)
        rounds = [each.finish() for each in self.background]
        for mount in self.mounts:
            mount.stop()
        ended = [node.name for node in self.metas + self.stores if node.process.poll() is not None]
        expect(not ended, f"ended by themselves: {ended}")
        logs = {log.name: log.read_text(errors="replace") for log in self.folder.glob("*.log")}
        panicked = [name for name, text in logs.items() if "panicked" in text]
        expect(not panicked, f"panicked: {panicked}")
        return ", ".join(rounds)

    def end(self, keep_logs):
        for each in self.background:
            each.enough.set()
        for mount in self.mounts:
            mount.abort()
        for node in self.metas + self.stores:
            node.end()
        for clean in self.at_end:
            clean()
        for path in self.folder.iterdir():
            if not (keep_logs and path.suffix == ".log"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if keep_logs:
            print(f"logs: {self.folder}")
        else:
            self.folder.rmdir()


class Background(threading.Thread):
    """Something that goes on while a suite runs, until it is told to stop, and may find fault."""

    def __init__(self):
        super().__init__(daemon=True)
        self.enough, self.rounds, self.error = threading.Event(), 0, None

    def run(self):
        try:
            while not self.enough.is_set():
                self.round()
                self.rounds += 1
        except Exception as error:  # told by finish(), which the suite calls
            self.error = error

    def finish(self):
        self.enough.set()
        self.join(180)
        expect(not self.is_alive(), f"{type(self).__name__} hangs")
        expect(not self.error, f"{type(self).__name__}: {self.error!r}")
        return f"{type(self).__name__}: {self.rounds} rounds"


class Faults(Background):
    """Two storage nodes and the leader go away and come back, again and again; a majority and four storage nodes stay.

    It is the same pair for as long as the cluster lives: stripes that were written while two nodes were away have no shards to
    spare for two others."""

    def __init__(self, cluster):
        super().__init__()
        self.cluster, self.pair = cluster, random.sample(cluster.stores, 2)
        hows = (signal.SIGKILL, signal.SIGSTOP)
        self.hows = itertools.cycle(itertools.product(hows, hows))

    def round(self):
        of_stores, of_leader = next(self.hows)
        for store in self.pair:
            store.take_away(of_stores)
        time.sleep(1.5)
        leader = self.cluster.leader()
        leader.take_away(of_leader)
        time.sleep(3)
        leader.bring_back()
        time.sleep(1)
        for store in self.pair:
            store.bring_back()
        self.cluster.wait_until_whole()
        self.enough.wait(2)


class Onlooker(Background):
    """Somebody who looks through everything from another machine meanwhile, and so caches all that may become stale."""

    def __init__(self, point):
        super().__init__()
        self.point = point

    def round(self):
        for folder, folders, files in os.walk(self.point):
            for name in files + folders:
                if self.enough.wait(0.003):
                    return
                self.look(os.path.join(folder, name))
        self.enough.wait(0.2)

    def look(self, path):
        try:
            about = os.lstat(path)
            if about.st_size < 1 << 20 and about.st_mode & 0o170000 == 0o100000:
                with open(path, "rb") as file:
                    file.read()
        except OSError as error:
            # Somebody removed it just now, or made a path that only its maker reaches, from inside.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                raise
