"""Git repositories for tests, written commit by commit with every detail given, by one `git fast-import`."""

import os
import pathlib
import subprocess

ENVIRONMENT = {**{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
               "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t",
               "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}
SYMLINK, SUBMODULE, EXECUTABLE, FILE = "120000", "160000", "100755", "100644"


def git(path, *arguments, data=None):
    """Runs git on a repository; returns what it prints."""
    done = subprocess.run(["git", "-C", str(path), *arguments], input=data, capture_output=True, check=True, env=ENVIRONMENT)
    return done.stdout.decode().strip()


class History:
    """Commits to be written. Each has a name, by which others call it their parent."""

    def __init__(self):
        self._stream = []
        self._marks = {}
        self._time_s = 1_600_000_000

    def commit(self, name, files=(), parents=None, message="Change it", *, author="Ann <ann@example.org>", time_s=None,
               zone="+0000", encoding=None):
        """Adds a commit.

        Args:
          name: of the commit, for this history.
          files: path (str or bytes) → content (str or bytes), None to delete it, or (mode, content); a submodule's
            content is a commit's id. All else is as in the first parent.
          parents: names; the commit added last where None.
          message: str or bytes.
        """
        parents = [list(self._marks)[-1]] if parents is None and self._marks else parents or []
        self._time_s += 60
        mark = self._marks[name] = len(self._marks) + 1
        when = f"{self._time_s if time_s is None else time_s} {zone}"
        self._add(f"commit refs/made/{mark}\nmark :{mark}\nauthor {author} {when}\ncommitter {author} {when}\n")
        if encoding:
            self._add(f"encoding {encoding}\n")
        self._data(message)
        for word, parent in zip(["from", *["merge"] * len(parents)], parents):
            self._add(f"{word} :{self._marks[parent]}\n")
        for path, content in dict(files).items():
            self._file(path, content)
        self._add("\n")
        return self

    def write(self, path, heads=None, *, head="refs/heads/main"):
        """Makes a bare repository; returns name → id. `heads`: ref → name, the last commit on main where None."""
        subprocess.run(["git", "init", "-q", "--bare", str(path)], check=True, env=ENVIRONMENT)
        heads = {"refs/heads/main": name for name in self._marks} if heads is None else heads
        for ref, name in heads.items():
            self._add(f"reset {ref}\nfrom :{self._marks[name]}\n\n")
        marks = pathlib.Path(path, "marks")
        if self._stream:
            git(path, "fast-import", "--quiet", f"--export-marks={marks}", data=b"".join(self._stream))
        git(path, "symbolic-ref", "HEAD", head)
        ids = dict(line.split() for line in marks.read_text().splitlines()) if marks.exists() else {}
        made = "".join(f"delete refs/made/{mark}\n" for mark in self._marks.values())
        git(path, "update-ref", "--stdin", data=made.encode())
        return {name: ids[f":{mark}"] for name, mark in self._marks.items()}

    def _add(self, text):
        self._stream.append(text.encode())

    def _data(self, content):
        content = content.encode() if isinstance(content, str) else content
        self._stream.append(b"data %d\n%s\n" % (len(content), content))

    def _file(self, path, content):
        raw = path.encode() if isinstance(path, str) else path
        quoted = '"' + "".join(f"\\{byte:03o}" for byte in raw) + '"'
        if content is None:
            self._add(f"D {quoted}\n")
            return
        mode, content = content if isinstance(content, tuple) else (FILE, content)
        if mode == SUBMODULE:
            self._add(f"M {mode} {content} {quoted}\n")
        else:
            self._add(f"M {mode} inline {quoted}\n")
            self._data(content)


def loose_object(path, id_):
    """Returns the file of an object that is in no pack."""
    return pathlib.Path(path, "objects", id_[:2], id_[2:])
