from tfdeq.programs.flag_groups import GROUPS


def test_a_flag_is_in_one_group():
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))


def test_the_folder_comes_first():
    assert next(iter(GROUPS.values()))[0] == "workdir"
