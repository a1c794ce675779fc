"""HTML out of strings of any kind."""

from iddpm_jax.report.markup import Html, joined, opening, tag, text


def test_text_is_escaped_and_markup_is_not():
    assert text('<b> & "c"') == "&lt;b&gt; &amp; &quot;c&quot;"
    assert text(Html("<b>")) == "<b>"
    assert text(1.5) == "1.5"
    inner = tag("b", {}, "<")
    assert tag("p", {"title": '"<'}, inner, "&") == '<p title="&quot;&lt;"><b>&lt;</b>&amp;</p>'


def test_attributes_without_a_value_and_elements_without_an_end():
    assert opening("input", {"min": 0, "disabled": True}) == '<input min="0" disabled>'


def test_pieces_are_joined_as_markup():
    found = joined(["<", Html("<br>")], " ")
    assert found == "&lt; <br>" and isinstance(found, Html)
