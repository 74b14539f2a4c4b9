#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""Writes several small files as one step: all are checked before the first is replaced."""

from __future__ import annotations

DOCUMENTATION = r"""
module: qos_files
short_description: Write or delete a set of files together
version_added: 0.1.0
author: vff.qos contributors (@vff)
description:
  - Files that belong together are validated together, and none is replaced if one is wrong.
  - Each file is replaced by a rename, so that a reader sees the old or the new one.
attributes:
  check_mode:
    support: full
    description: Validates, too, if the command for it exists.
  diff_mode:
    support: full
    description: Shows the content of each file.
options:
  directories:
    description: Directories to make before the files; owned by root.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where.
        type: path
        required: true
      group:
        description: Group of the directory.
        type: str
        default: root
      mode:
        description: Permissions.
        type: str
        default: "0755"
  files:
    description: Files to write.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where.
        type: path
        required: true
      content:
        description: What.
        type: str
        required: true
      owner:
        description: Owner of the file.
        type: str
        default: root
      group:
        description: Group of the file.
        type: str
        default: root
      mode:
        description: Permissions.
        type: str
        default: "0644"
  links:
    description: Symbolic links to make; their targets need not exist.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where.
        type: path
        required: true
      target:
        description: Where it leads to.
        type: path
        required: true
  validate:
    description:
      - Command that must succeed before a file is replaced. A word that is the path of one of
        O(files) stands for its new content.
    type: list
    elements: str
    default: []
  absent:
    description: Files and directories to delete.
    type: list
    elements: path
    default: []
  absent_if_empty:
    description: Directories to delete after that, in this order, if nothing is in them.
    type: list
    elements: path
    default: []
  keep_in:
    description:
      - Directory for the old version of each file and link that is written or deleted, so that
        they can be put back.
    type: path
"""

EXAMPLES = r"""
- name: Write two files that belong together
  vff.qos.qos_files:
    directories:
      - {path: /etc/example}
    files:
      - {path: /etc/example/a.yml, content: "a: 1\n"}
      - {path: /etc/example/b.yml, content: "b: 1\n", mode: "0640"}
    validate: [/usr/bin/example, --check, /etc/example/a.yml, /etc/example/b.yml]
"""

RETURN = r"""
paths:
  description: What was written, linked, made or deleted.
  type: list
  elements: str
  returned: always
  sample: [/etc/example/a.yml]
"""

import os
import shutil
import tempfile
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vff.qos.plugins.module_utils.kept import keep

#: One of what the task lists, with its options.
Item = Dict[str, Any]


def text_of(path: str) -> str | None:
    """Content of a file, or None if there is no file."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def fill_in(words: list[str], new_files: dict[str, str]) -> list[str]:
    """``words`` with each path that is in ``new_files`` replaced by its stand-in."""
    return [new_files.get(word, word) for word in words]


def write_new(module: AnsibleModule, changed: list[Item]) -> dict[str, str]:
    """Temporary files with the new contents, by path."""
    new_files = {}
    for item in changed:
        handle, temporary = tempfile.mkstemp(dir=module.tmpdir)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(item["content"])
        new_files[item["path"]] = temporary
    return new_files


def validate(module: AnsibleModule, new_files: dict[str, str]) -> None:
    """Runs the validation; ends the module with its words, which name the real paths."""
    words = module.params["validate"]
    # In check mode the command may be something that the same run would install.
    if not words or not new_files or (module.check_mode and not os.path.exists(words[0])):
        return
    rc, out, err = module.run_command(fill_in(words, new_files))
    if rc != 0:
        message = (err or out).strip()
        for path, temporary in new_files.items():
            message = message.replace(temporary, path)
        module.fail_json(msg=message or f"{' '.join(words)} ended with {rc}")


def fix_attributes(module: AnsibleModule, item: Item) -> bool:
    """Owner, group and mode; True if something was different."""
    path = item["path"]
    if module.check_mode and not os.path.lexists(path):
        return False
    arguments = module.load_file_common_arguments(
        {
            "path": path,
            "owner": item.get("owner", "root"),
            "group": item["group"],
            "mode": item["mode"],
        }
    )
    return bool(module.set_fs_attributes_if_different(arguments, False))


def keep_old(module: AnsibleModule, path: str) -> None:
    if module.params["keep_in"] and not module.check_mode:
        keep(module.params["keep_in"], path)


def delete(module: AnsibleModule, path: str) -> None:
    if module.check_mode:
        return
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        keep_old(module, path)
        os.unlink(path)


def make_directory(module: AnsibleModule, item: Item) -> bool:
    """True if the directory was not there."""
    if os.path.isdir(item["path"]):
        return False
    if not module.check_mode:
        os.makedirs(item["path"], 0o755)
    return True


def make_link(module: AnsibleModule, item: Item) -> bool:
    """True if the link was not there or led elsewhere."""
    path, target = item["path"], item["target"]
    if os.path.islink(path) and os.readlink(path) == target:
        return False
    keep_old(module, path)
    if not module.check_mode:
        temporary = f"{path}.new"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(target, temporary)
        os.replace(temporary, path)
    return True


def entries(**options: Item) -> Item:
    """Specification of a list of things that have a path."""
    options["path"] = {"type": "path", "required": True}
    return {"type": "list", "elements": "dict", "default": [], "options": options}


def main() -> None:
    text, required = {"type": "str", "required": True}, {"type": "path", "required": True}
    group = {"type": "str", "default": "root"}
    module = AnsibleModule(
        argument_spec={
            "directories": entries(mode={"type": "str", "default": "0755"}, group=group),
            "files": entries(
                content=text,
                mode={"type": "str", "default": "0644"},
                owner={"type": "str", "default": "root"},
                group=group,
            ),
            "links": entries(target=required),
            "validate": {"type": "list", "elements": "str", "default": []},
            "absent": {"type": "list", "elements": "path", "default": []},
            "absent_if_empty": {"type": "list", "elements": "path", "default": []},
            "keep_in": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    paths: list[str] = []
    diff: list[Item] = []

    old = {item["path"]: text_of(item["path"]) for item in params["files"]}
    changed = [item for item in params["files"] if old[item["path"]] != item["content"]]
    new_files = write_new(module, changed)
    validate(module, new_files)

    def replace_file(module: AnsibleModule, item: Item) -> bool:
        if item not in changed:
            return False
        path = item["path"]
        diff.append({"before_header": path, "after_header": path,
                     "before": old[path] or "", "after": item["content"]})  # fmt: skip
        keep_old(module, path)
        if not module.check_mode:
            module.atomic_move(new_files[path], path)
        return True

    makers = {"directories": make_directory, "files": replace_file, "links": make_link}
    for kind, make in makers.items():
        for item in params[kind]:
            made = make(module, item)
            if "mode" in item:
                made |= fix_attributes(module, item)
            if made:
                paths.append(item["path"])
    for path in params["absent"]:
        if os.path.lexists(path):
            paths.append(path)
            delete(module, path)
    for path in params["absent_if_empty"]:
        # In check mode what is in it may be what would be deleted.
        if os.path.isdir(path) and {os.path.join(path, name) for name in os.listdir(path)} <= set(
            paths
        ):
            paths.append(path)
            if not module.check_mode:
                os.rmdir(path)
    if paths and not diff:
        listing = "".join(f"{path}\n" for path in paths)
        gone = bool(params["absent"])
        diff = [{"before": listing if gone else "", "after": "" if gone else listing}]
    module.exit_json(changed=bool(paths), paths=paths, diff=diff)


if __name__ == "__main__":
    main()
