from deploykit.report.tables import MAX_ROWS, MAX_TEXT, cell, provider_tables, tables_of


def test_plain_values_records_and_nested_parts_become_tables():
    found = tables_of("parity", {"max_abs": 1e-6, "worst": [{"row": 1, "text": "a"}], "nodes": {"CPU": {"count": 3}}})
    assert [table.title for table in found] == ["parity", "parity: worst", "parity: nodes"]
    assert found[0].rows == (("max abs", "1e-06"),)
    assert found[1].rows == (("1", "a"),)
    assert found[2].rows == (("CPU", "3"),)


def test_numbers_are_right_aligned_and_missing_fields_are_dashes():
    (table,) = tables_of("x", {"rows": [{"a": 1, "b": "t"}, {"b": "u"}]})
    assert [column.style for column in table.columns] == ["num", ""]
    assert table.rows[1] == ("–", "u")


def test_long_lists_and_texts_are_cut_and_say_so():
    (table,) = tables_of("x", {"rows": [{"a": "t" * 1000}] * (MAX_ROWS + 5)})
    assert table.title.endswith(f"({MAX_ROWS} of {MAX_ROWS + 5})")
    assert len(table.rows) == MAX_ROWS
    assert len(table.rows[0][0]) == MAX_TEXT


def test_parts_of_the_same_fields_are_rows_of_one_table():
    (_, table) = tables_of("invariance", {"changed": 1, "padded": {"worst": 0.1}, "mixed": {"worst": 0.2}})
    assert table.rows == (("padded", "0.1"), ("mixed", "0.2"))


def test_a_long_list_of_values_is_cut_and_says_so():
    assert cell(list(range(9))) == "0, 1, 2, 3, 4, 5, … (9 in all)"


def test_nothing_is_no_table():
    assert tables_of("x", {}) == []
    assert tables_of("x", {"rows": [], "inner": {}}) == []


def test_every_kind_of_value_has_a_text():
    assert [cell(value) for value in (None, True, 0.1234567, 3, "a", [1, 2], {"k_v": None})] == [
        "–", "yes", "0.1235", "3", "a", "1, 2", "k v –",
    ]  # fmt: skip


def test_provider_truth_sets_nodes_and_time_beside_each_other():
    first, second = provider_tables({"nodes": {"CUDA": 40}, "time_share": {"CUDA": 0.9, "CPU": 0.1}, "ok": True})
    assert first.rows == (("CUDA", "40", "90.0%"), ("CPU", "0", "10.0%"))
    assert second.rows == (("ok", "yes"),)
    assert provider_tables({}) == []
