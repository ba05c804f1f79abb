"""META.json follows the PGXN Meta Spec 1.0.0, the versions of all packages are those of the extension, and the zip of
make dist holds what a build needs. It is built by make test-deb, because that takes minutes."""

import json
import re
import shutil
import subprocess
import tomllib
import zipfile

import pytest

from support.prefix import PROJECT

META = json.loads((PROJECT / "META.json").read_text("utf-8"))
CONTROL = (PROJECT / "sync_outbox.control").read_text("utf-8")
VERSION = re.search(r"^default_version = '(.*)'", CONTROL, re.M)[1]

# Of the specification, https://pgxn.org/spec/.
SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
TERM = re.compile(r"[^\s/\\\x00-\x1f\x7f]{2,}")
LICENSES = {"agpl_3", "apache_1_1", "apache_2_0", "artistic_1", "artistic_2", "bsd", "freebsd", "gfdl_1_2", "gfdl_1_3", "gpl_1",
            "gpl_2", "gpl_3", "lgpl_2_1", "lgpl_3_0", "mit", "mozilla_1_0", "mozilla_1_1", "openssl", "perl_5", "postgresql",
            "qpl_1_0", "ssleay", "sun", "zlib", "open_source", "restricted", "unrestricted", "unknown"}
MEMBERS = {"abstract", "maintainer", "license", "provides", "name", "version", "meta-spec", "description", "generated_by",
           "no_index", "prereqs", "release_status", "resources", "tags"}


def sentence(value):
    return isinstance(value, str) and value.strip() != ""


# META.json

def test_its_required_members():
    assert TERM.fullmatch(META["name"])
    assert SEMVER.fullmatch(META["version"])
    assert sentence(META["abstract"])
    assert META["license"] in LICENSES
    assert META["meta-spec"] == {"version": "1.0.0", "url": "https://pgxn.org/meta/spec.txt"}
    maintainers = META["maintainer"] if isinstance(META["maintainer"], list) else [META["maintainer"]]
    assert maintainers and all(map(sentence, maintainers))


def test_its_other_members():
    assert {name for name in META if name.lower()[:2] != "x_"} <= MEMBERS
    assert META["release_status"] in {"stable", "testing", "unstable"}
    assert sentence(META["description"]) and sentence(META["generated_by"])
    assert META["tags"] and all(sentence(tag) and len(tag) <= 255 and "/" not in tag for tag in META["tags"])
    for phase, kinds in META["prereqs"].items():
        assert phase in {"configure", "build", "test", "runtime", "develop"}
        for kind, needed in kinds.items():
            assert kind in {"requires", "recommends", "suggests", "conflicts"}
            assert all(version == 0 or SEMVER.fullmatch(version) for version in needed.values())


def test_what_it_provides_is_there():
    assert META["name"] in META["provides"]
    for name, provided in META["provides"].items():
        assert TERM.fullmatch(name) and SEMVER.fullmatch(provided["version"]) and sentence(provided["abstract"])
        assert (PROJECT / provided["file"]).is_file() and (PROJECT / provided["docfile"]).is_file()


# Versions

def test_all_versions_are_one():
    cargo = tomllib.loads((PROJECT / "Cargo.toml").read_text("utf-8"))
    assert cargo["workspace"]["package"]["version"] == VERSION
    assert META["version"] == META["provides"]["sync_outbox"]["version"] == VERSION
    assert META["provides"]["sync_outbox"]["file"] == f"sql/sync_outbox--{VERSION}.sql"
    assert (PROJECT / "debian/changelog").read_text("utf-8").startswith(f"sync-outbox ({VERSION}-")


def test_the_oldest_major_is_the_same_everywhere():
    cargo = tomllib.loads((PROJECT / "Cargo.toml").read_text("utf-8"))
    oldest = min(int(name[2:]) for name in cargo["features"] if re.fullmatch(r"pg\d+", name))
    assert META["prereqs"]["runtime"]["requires"]["PostgreSQL"] == f"{oldest}.0.0"
    assert (PROJECT / "debian/pgversions").read_text("utf-8") == f"{oldest}+\n"


def test_the_control_file_of_the_packages_is_the_template_for_debian_12():
    template = (PROJECT / "debian/control.in").read_text("utf-8")
    assert (PROJECT / "debian/control").read_text("utf-8") == template.replace("PGVERSION", "15")


# make dist

@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The zip of the last commit, unpacked, without its top folder."""
    if not shutil.which("git") or subprocess.run(["git", "-C", PROJECT, "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("this is no clone with git")
    where = tmp_path_factory.mktemp("dist")
    subprocess.run(["make", "-s", "-C", PROJECT, "dist", f"TARGET_DIR={where}"], check=True)
    (archive,) = where.glob("*.zip")
    assert archive.name == f"{META['name']}-{META['version']}.zip"
    with zipfile.ZipFile(archive) as unzip:
        unzip.extractall(where)
    return where / archive.stem


def test_the_zip_holds_what_a_build_needs(unpacked):
    assert json.loads((unpacked / "META.json").read_text("utf-8"))["name"] == META["name"]
    # Cargo finds every file that the manifests name; --locked: and no other versions than those that were tested.
    done = subprocess.run(["cargo", "metadata", "--locked", "--offline", "--no-deps", "--format-version=1",
                           "--manifest-path", unpacked / "Cargo.toml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sources = {target["src_path"] for package in json.loads(done.stdout)["packages"] for target in package["targets"]}
    assert sources and all(source.startswith(str(unpacked)) for source in sources)

    tracked = subprocess.run(["git", "-C", PROJECT, "ls-tree", "-r", "--name-only", "HEAD"],
                             check=True, capture_output=True, text=True).stdout.splitlines()
    assert {path for path in tracked if not (unpacked / path).exists()} == set()
