from latentry.contract.errors import listed


def test_a_list_in_a_message_ends_where_nobody_reads_on() -> None:
    assert listed([]) == ""
    assert listed([3, 4]) == "3, 4"
    assert listed(range(20), " ").split() == [str(number) for number in range(20)]
    assert listed((f"line {number}" for number in range(50_000)), "\n", most=2) == (
        "line 0\nline 1\nand 49,998 more"
    )
