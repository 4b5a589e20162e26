"""A clone is read whatever its state: every kind of change by its name, what is missing as a value, damage as an error."""

import pathlib

import pytest
from hypothesis import given, strategies

from clones import EXECUTABLE, SUBMODULE, SYMLINK, History, git, loose_object
from swerl_jax.curate import candidates, change, file_changes, git_names, git_process
from swerl_jax.curate.change import Candidate, Change, FileChange, Reject
from swerl_jax.curate.repository import Limits, Repository, RepositoryError
from swerl_jax.data import shards

LINES = "".join(f"line {number}\n" for number in range(30))


def between(base="", head="", **more):
    return Change(id="x", source="git", repo="o/n", base=base, head=head, **more)


def read(path, changed, limits=Limits()):
    with Repository(path, limits) as repository:
        return candidates.candidate(repository, changed)


def files_of(path, base, head, limits=Limits()):
    found = read(path, between(base, head), limits)
    assert isinstance(found, Candidate), found
    assert found.commit == base
    return found.files


def test_every_kind_of_change_has_its_name(tmp_path):
    other = "1" * 40
    before = {
        "edit.py": "a\n", "gone.py": "b\n", "old.py": LINES, "Case.py": "case " + LINES, "run.sh": "r\n",
        "image.bin": b"a\0b", "was_text": "t\n", "latin.py": "caf\xe9".encode("latin-1"), "link": (SYMLINK, "edit.py"),
        "module": (SUBMODULE, other), "big.py": "x" * 5000, "thing": "file\n", "same.py": "same\n", "both.sh": "1\n",
    }
    after = {
        "edit.py": "a2\r\n\ufeff", "gone.py": None, "old.py": None, "new/name.py": LINES + "more\n", "Case.py": None,
        "case.py": "case " + LINES, "run.sh": (EXECUTABLE, "r\n"), "image.bin": b"a\0c", "was_text": b"\0",
        "latin.py": "caf\xe9!".encode("latin-1"), "link": (SYMLINK, "same.py"), "module": (SUBMODULE, "2" * 40),
        "big.py": "y" * 5000, "thing": None, "thing/inner.py": "inner\n", b"odd\nname.py": "o\n", b"caf\xe9.py": "o2\n",
        "new.py": "", "both.sh": (EXECUTABLE, "2\n"), "turned.py": (SYMLINK, "x"), " blank.py": "o3\n",
    }
    ids = History().commit("before", before).commit("after", after).write(tmp_path / "r")
    found = files_of(tmp_path / "r", ids["before"], ids["after"], Limits(blob_bytes=4999))
    assert found == tuple(sorted([
        FileChange("edit.py", change.EDIT, "a\n", "a2\r\n\ufeff"),
        FileChange("gone.py", change.DELETE, "b\n", None),
        FileChange("new/name.py", change.RENAME, LINES, LINES + "more\n", "old.py"),
        FileChange("case.py", change.RENAME, "case " + LINES, "case " + LINES, "Case.py"),
        FileChange("run.sh", change.MODE, "r\n", "r\n"),
        FileChange("image.bin", change.BINARY),
        FileChange("was_text", change.BINARY, "t\n", None),
        FileChange("latin.py", change.NOT_UTF8),
        FileChange("link", change.SYMLINK),
        FileChange("module", change.SUBMODULE),
        FileChange("big.py", change.TOO_LARGE),
        FileChange("thing", change.DELETE, "file\n", None),
        FileChange("thing/inner.py", change.NEW, None, "inner\n"),
        FileChange("odd\\nname.py", change.ODD_PATH, None, "o\n"),
        FileChange("caf\\xe9.py", change.ODD_PATH, None, "o2\n"),
        FileChange(" blank.py", change.ODD_PATH, None, "o3\n"),
        FileChange("new.py", change.NEW, None, ""),
        FileChange("both.sh", change.EDIT, "1\n", "2\n"),
        FileChange("turned.py", change.SYMLINK),
    ], key=lambda file: file.path))
    with Repository(tmp_path / "r") as repository:
        tree = repository.tree(ids["after"])
    assert sorted(tree) == sorted([
        "edit.py", "new/name.py", "case.py", "run.sh", "image.bin", "was_text", "latin.py", "link", "module", "big.py",
        "thing/inner.py", "new.py", "both.sh", "turned.py", "same.py"])
    assert tree["module"] == (SUBMODULE, "2" * 40)
    assert tree["run.sh"] == (EXECUTABLE, git(tmp_path / "r", "rev-parse", f"{ids['after']}:run.sh"))


@given(strategies.binary(min_size=1, max_size=12) | strategies.text(min_size=1, max_size=8).map(
    lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_path_is_usable_exactly_if_an_example_takes_it(raw):
    row = {"id": "a", "repo": "o/n", "commit": "c", "issue": "i", "files": {"a": "b"}, "oracle": {}}
    try:
        shards.example_from_json({**row, "oracle": {raw.decode(): "new"}})
        is_taken = True
    except ValueError:
        is_taken = False
    assert (file_changes.usable_path(raw) is not None) == is_taken
    assert file_changes.shown_path(raw).isprintable()


def test_a_merge_is_the_change_since_the_branches_parted(tmp_path):
    history = History().commit("root", {"a.py": "1\n", "b.py": "1\n", "c.py": "1\n"})
    history.commit("main", {"b.py": "main\n"}, ["root"])
    history.commit("topic1", {"a.py": "half\n"}, ["root"]).commit("topic2", {"a.py": "whole\n", "d.py": "d\n"})
    history.commit("merge", {"a.py": "whole\n", "d.py": "d\n"}, ["main", "topic2"])
    ids = history.write(tmp_path / "r")
    expected = (FileChange("a.py", change.EDIT, "1\n", "whole\n"), FileChange("d.py", change.NEW, None, "d\n"))
    merge = {"merge_commit": ids["merge"]}
    for known in (between(ids["main"], ids["topic2"]), between("", "", **merge), between("", "f" * 40, **merge),
                  between(ids["root"], ids["topic2"], **merge)):
        found = read(tmp_path / "r", known)
        assert (found.commit, found.files) == (ids["root"], expected)
    with_main = History().commit("root", {"a.py": "1\n", "b.py": "1\n"}).commit("main", {"b.py": "main\n"}, ["root"])
    with_main.commit("topic", {"a.py": "2\n"}, ["root"]).commit("synced", {"b.py": "main\n"}, ["topic", "main"])
    with_main.commit("merge", {"a.py": "2\n"}, ["main", "synced"])
    ids = with_main.write(tmp_path / "s")
    found = read(tmp_path / "s", between(ids["main"], ids["synced"]))
    assert (found.commit, found.files) == (ids["main"], (FileChange("a.py", change.EDIT, "1\n", "2\n"),))


def test_what_was_squashed_or_rebased_is_found_by_its_merge_commit(tmp_path):
    history = History().commit("root", {"a.py": "0\n"}).commit("one", {"a.py": "1\n"}, message="One")
    history.commit("two", {"a.py": "2\n"}, message="Two").commit("squash", {"a.py": "3\n"}, message="All of it (#7)\n\nMore")
    ids = history.write(tmp_path / "r")
    for commits, merge, base in ((2, "two", "root"), (1, "two", "one"), (None, "two", "one"), (3, "squash", "two"),
                                 (9, "two", None)):
        found = read(tmp_path / "r", between(ids["root"], "e" * 40, merge_commit=ids[merge], meta={"commits": commits}))
        if base is None:
            assert (found.stage, found.reason) == ("repository", "missing_commit")
        else:
            assert found.commit == ids[base]


def test_a_squashed_change_without_a_number_is_known_by_its_files(tmp_path):
    history = History().commit("root", {"a.py": "0\n"}).commit("other", {"b.py": "1\n"}).commit("another", {"c.py": "1\n"})
    ids = history.commit("squash", {"a.py": "1\n", "d.py": "1\n"}, message="All of it").write(tmp_path / "r")
    for commits, files, base in ((3, 2, "another"), (3, 4, "root"), (2, 3, "other"), (3, None, "root"), (9, 2, "another")):
        meta = {"commits": commits, "files": files}
        assert read(tmp_path / "r", between("", "e" * 40, merge_commit=ids["squash"], meta=meta)).commit == ids[base]
    found = read(tmp_path / "r", between("", "", merge_commit=ids["squash"], meta={"commits": 3, "files": 7}))
    assert (found.reason, found.detail) == ("unknown_extent", f"7 files in 3 commits up to {ids['squash']}")


def test_lines_of_history_that_cannot_be_compared_are_named(tmp_path):
    history = History().commit("root", {"a": "1"}).commit("left", {"l": "1"}, ["root"]).commit("right", {"r": "1"}, ["root"])
    history.commit("x", {"r": "1"}, ["left", "right"]).commit("y", {"l": "1"}, ["right", "left"])
    history.commit("crossed", {"z": "1"}, ["x", "y"]).commit("alien", {"q": "1"}, []).commit("joined", {}, ["crossed", "alien"])
    ids = history.write(tmp_path / "r")

    def reason(base, head, limits=Limits()):
        found = read(tmp_path / "r", between(ids.get(base, base), ids.get(head, head)), limits)
        assert isinstance(found, Reject) and found.stage == candidates.STAGE and found.reason in candidates.REASONS
        return found.reason

    assert reason("x", "y") == "several_merge_bases"
    assert reason("x", "y", Limits(walk_commits=1)) == "several_merge_bases"
    assert reason("crossed", "alien") == reason("crossed", "alien", Limits(walk_commits=1)) == "no_merge_base"
    assert reason("f" * 40, "y") == reason("x", "nonsense") == reason("", "") == "missing_commit"
    assert reason("root", "joined", Limits(change_files=2)) == "too_many_files"
    assert reason("root", "joined", Limits(change_bytes=0)) == "too_many_bytes"
    with Repository(tmp_path / "r") as repository:
        assert repository.root_commits() == sorted([ids["root"], ids["alien"]])


def test_a_commit_is_read_whatever_its_encoding(tmp_path):
    history = History().commit("utf8", message="Größe\n\nbody\n", author="Jörg <j@x>", time_s=86400, zone="+0200")
    history.commit("declared", message="Größe".encode("latin-1"), encoding="ISO-8859-1", time_s=2_000_000_000)
    history.commit("wrong", message=b"bad \xff", author=" <nobody@x>")
    history.commit("unknown", message="ö".encode(), encoding="klingon")
    history.commit("escaped", message="a\\ud800b", encoding="unicode_escape")
    ids = history.write(tmp_path / "r")
    with Repository(tmp_path / "r") as repository:
        found = {commit.id: commit for commit in repository.commits()}
        assert [commit.id for commit in repository.commits(1, 3)] == [ids["declared"], ids["wrong"]]
        assert (repository.count(), list(repository.commits(9))) == (5, [])
    first = found[ids["utf8"]]
    assert (first.message, first.author, first.created_at) == ("Größe\n\nbody\n", "Jörg", "1970-01-02T00:00:00Z")
    messages = [found[ids[name]].message for name in ("declared", "wrong", "unknown", "escaped")]
    assert messages == ["Größe", "bad \ufffd", "ö", "a?b"]
    assert found[ids["declared"]].committed_at == "2033-05-18T03:33:20Z"
    assert (found[ids["wrong"]].author, found[ids["wrong"]].parents) == ("", (ids["declared"],))


def test_the_head_is_found_without_a_branch_that_HEAD_names(tmp_path):
    history = History().commit("a", {"x": "1"}).commit("b", {"x": "2"})
    ids = history.write(tmp_path / "dangling", {"refs/heads/topic": "b", "refs/heads/master": "a"})
    with Repository(tmp_path / "dangling") as repository:
        assert repository.head() == ids["a"]  # HEAD names main, which is not there
    git(tmp_path / "dangling", "update-ref", "--no-deref", "HEAD", ids["b"])
    with Repository(tmp_path / "dangling") as repository:
        assert (repository.head(), repository.count()) == (ids["b"], 2)
    git(tmp_path / "dangling", "symbolic-ref", "HEAD", "refs/heads/none")
    git(tmp_path / "dangling", "tag", "-a", "-m", "v", "v1", ids["b"])
    git(tmp_path / "dangling", "update-ref", "-d", "refs/heads/topic")
    git(tmp_path / "dangling", "update-ref", "-d", "refs/heads/master")
    with Repository(tmp_path / "dangling") as repository:
        assert repository.head() == ids["b"]
    History().write(tmp_path / "empty")
    with Repository(tmp_path / "empty") as repository:
        assert (repository.head(), repository.count()) == ("", 0)
        assert list(repository.commits()) == repository.root_commits() == []
        assert (repository.name(), repository.tree("")) == ("empty", None)


def test_replacements_hooks_and_variables_of_the_clone_do_not_matter(tmp_path, monkeypatch):
    ids = History().commit("a", {"x": "1"}).commit("b", {"x": "2"}, message="true").write(tmp_path / "r")
    git(tmp_path / "r", "replace", ids["b"], ids["a"])
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", "/nowhere")
    with Repository(tmp_path / "r") as repository:
        assert [commit.message for commit in repository.commits()] == ["Change it", "true"]


def partial(tmp_path):
    history = History().commit("a", {"d/x.py": LINES, "y.py": "1\n"})
    history.commit("b", {"d/x.py": None, "d/z.py": LINES + "2\n", "y.py": "2\n"})
    ids = history.write(tmp_path / "full")
    git(tmp_path / "full", "config", "uploadpack.allowFilter", "true")
    return ids, (tmp_path / "full").as_uri()


def test_a_partial_clone_lacks_texts_and_fetches_none(tmp_path):
    ids, url = partial(tmp_path)
    git(tmp_path, "clone", "-q", "--bare", "--filter=blob:none", url, "part")
    kinds = {file.path: file.kind for file in files_of(tmp_path / "part", ids["a"], ids["b"])}
    assert kinds == {"d/x.py": change.DELETE, "d/z.py": change.MISSING, "y.py": change.MISSING}
    git(tmp_path, "clone", "-q", "--bare", "--filter=tree:0", url, "bare")
    found = read(tmp_path / "bare", between(ids["a"], ids["b"]))
    assert (found.reason, found.stage) == ("missing_tree", candidates.STAGE)
    with Repository(tmp_path / "bare") as repository:
        assert repository.tree(ids["b"]) is None


def test_a_shallow_clone_ends_where_it_was_cut(tmp_path):
    history = History().commit("a", {"x": "1"}).commit("b", {"x": "2"}).commit("side", {"y": "1"}, ["a"])
    history.commit("m", {"y": "1"}, ["b", "side"]).commit("n", {"x": "3"})
    ids = history.write(tmp_path / "full")
    git(tmp_path, "clone", "-q", "--bare", "--depth=2", (tmp_path / "full").as_uri(), "cut")
    with Repository(tmp_path / "cut") as repository:
        assert [commit.id for commit in repository.commits()] == [ids["m"], ids["n"]]
        assert repository.root_commits() == []
    assert [file.path for file in files_of(tmp_path / "cut", ids["m"], ids["n"])] == ["x"]
    git(tmp_path, "clone", "-q", "--bare", "--depth=3", (tmp_path / "full").as_uri(), "cut3")
    assert read(tmp_path / "cut3", between(ids["b"], ids["side"])).reason == "shallow"


def test_a_damaged_object_costs_one_file(tmp_path):
    history = History().commit("a", {"x": "1", "y": "1", "d/z": "1"})
    ids = history.commit("b", {"x": "lost", "y": "2", "w": "damaged", "d/z": "3"}).write(tmp_path / "r")
    lost, damaged, tree = (loose_object(tmp_path / "r", git(tmp_path / "r", "rev-parse", f"{ids['b']}:{name}"))
                           for name in ("x", "w", "d"))
    lost.unlink()
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-5])
    kinds = {file.path: file.kind for file in files_of(tmp_path / "r", ids["a"], ids["b"])}
    assert kinds == {"x": change.MISSING, "w": change.MISSING, "y": change.EDIT, "d/z": change.EDIT}
    tree.chmod(0o644)
    tree.write_bytes(b"nonsense")
    assert read(tmp_path / "r", between(ids["a"], ids["b"])).reason == "missing_tree"
    with Repository(tmp_path / "r") as repository:
        assert repository.tree(ids["b"]) is None
        assert sorted(repository.tree(ids["a"])) == ["d/z", "x", "y"]


def test_a_broken_clone_is_an_error_with_its_path(tmp_path):
    for name in ("nothing", "file", "hollow.git"):
        (tmp_path / name).mkdir()
        with pytest.raises(RepositoryError, match=f"{name} cannot be read"):
            Repository(tmp_path / name)
    ids = History().commit("a", {"x": "1"}).commit("b", {"x": "2"}).write(tmp_path / "r")
    loose_object(tmp_path / "r", ids["a"]).unlink()
    with Repository(tmp_path / "r") as repository, pytest.raises(RepositoryError, match="r: its history cannot be walked"):
        repository.count()
    loose_object(tmp_path / "r", ids["b"]).unlink()
    with Repository(tmp_path / "r") as repository, pytest.raises(RepositoryError, match="missing object"):
        repository.head()


def test_clones_are_found_and_named(tmp_path):
    history = History().commit("a", {"x": "1"})
    for name in ("b.git", "owner/a.git", "owner/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        history.write(tmp_path / name)
        history = History().commit("a", {"x": "1"})
    git(tmp_path, "clone", "-q", "b.git", "work")
    (tmp_path / "broken.git").mkdir()
    found = [pathlib.Path(path).relative_to(tmp_path).as_posix() for path in git_names.find_repositories(tmp_path)]
    assert found == ["b.git", "broken.git", "owner/a.git", "owner/c", "work"]
    assert git_names.find_repositories(tmp_path / "work") == [str(tmp_path / "work")]
    with pytest.raises(ValueError, match="found no clone"):
        git_names.find_repositories(tmp_path / "missing")
    with Repository(tmp_path / "work") as repository:
        assert (repository.name(), repository.count()) == ("work", 1)  # its origin is a directory
    git(tmp_path / "work", "remote", "add", "fork", "git@github.com:Me/fork.git")
    git(tmp_path / "work", "remote", "set-url", "origin", "https://user:secret@github.com/Owner/Name.git/")
    git(tmp_path / "work", "worktree", "add", "-q", str(tmp_path / "tree"))
    for name in ("work", "tree"):
        with Repository(tmp_path / name) as repository:
            assert (repository.name(), repository.count()) == ("Owner/Name", 1)


@pytest.mark.parametrize(("url", "name"), [
    ("ssh://git@host:22/o/n.git", "o/n"), ("git@host:o/n", "o/n"), ("https://host/o/n/", "o/n"), ("../n.git", ""),
    ("/srv/o/n.git", ""), ("file:///srv/o/n.git", ""), ("https://host/n", ""), ("https://host/g/o/n.git", "o/n"),
])
def test_a_remote_names_the_repository(url, name):
    assert git_names.name_from_url(url) == name


def test_long_names_of_objects_are_read_too(tmp_path):
    git(tmp_path, "init", "-q", "--object-format=sha256", "-b", "main", "r")
    (tmp_path / "r" / "a.py").write_text("1\n")
    git(tmp_path / "r", "add", ".")
    git(tmp_path / "r", "commit", "-q", "-m", "one")
    (tmp_path / "r" / "a.py").write_text("2\n")
    git(tmp_path / "r", "commit", "-q", "-a", "-m", "two")
    with Repository(tmp_path / "r") as repository:
        first, second = (commit.id for commit in repository.commits())
        assert len(first) == 64 and list(repository.tree(first)) == ["a.py"]
    assert files_of(tmp_path / "r", first, second) == (FileChange("a.py", change.EDIT, "1\n", "2\n"),)


def test_a_licence_comes_from_the_tree_where_the_change_tells_none(tmp_path):
    words = "This is free and unencumbered software released into the public domain."
    ids = History().commit("a", {"x": "1", "LICENSE": words}).commit("b", {"x": "2"}).write(tmp_path / "r")
    assert read(tmp_path / "r", between(ids["a"], ids["b"])).change.licence == "Unlicense"
    assert read(tmp_path / "r", between(ids["a"], ids["b"], licence="ISC")).change.licence == "ISC"


def test_git_that_gives_no_answer_is_not_waited_for():
    slow = git_process.Dialogue(["sh", "-c", "sleep 60"], git_process.environment(), 0.05, 10)
    slow.ask(b"x\n")
    with pytest.raises(RepositoryError, match="within 0.05 s"):
        slow.until(b"\n")
    with pytest.raises(RepositoryError, match="longer than 0.05 s"):
        git_process.run(["sleep", "60"], {}, 0.05)
    line = ["sh", "-c", "printf 'hint: no\\nfatal: no luck:\\n\\ttoday' >&2"]
    dead = git_process.Dialogue(line, git_process.environment(), 10, 10)
    for _ in range(2):  # it starts anew
        with pytest.raises(git_process.GitDied, match="^no luck: today$"):
            dead.ask(b"x\n")
            dead.exactly(5)
    echo = git_process.Dialogue(["cat"], git_process.environment(), 10, max_requests=2)
    for text in (b"one\n", b"two\n", b"three\n"):
        echo.ask(text)
        assert echo.peek() == text[:1] and echo.until(b"\n") == text[:-1]
    echo.close()


def test_a_damaged_pack_is_an_error_and_borrowed_objects_are_read(tmp_path):
    history = History().commit("a", {"x": "1", "d/y": "1"})
    for number in range(20):
        history.commit(f"c{number}", {"x": str(number) * 50})
    ids = history.write(tmp_path / "r")
    git(tmp_path / "r", "repack", "-adq")
    git(tmp_path, "clone", "-q", "--shared", "r", "borrowing")
    with Repository(tmp_path / "borrowing", Limits(tree_files=1)) as repository:
        assert (repository.count(), repository.tree(ids["a"])) == (21, None)  # two paths are more than the limit
    pack, = (tmp_path / "r" / "objects" / "pack").glob("*.pack")
    content = pack.read_bytes()
    pack.chmod(0o644)
    pack.write_bytes(content[:len(content) // 3] + b"\xff" * 60 + content[len(content) // 3 + 60:])
    with Repository(tmp_path / "r") as repository, pytest.raises(RepositoryError, match="r"):
        repository.count()
