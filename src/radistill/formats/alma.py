"""ALMA's parallel text: `{"translation": {"de": "…", "en": "…"}}`; more than two languages may stand in a row."""

from collections.abc import Mapping

from radistill.formats.base import BadRow, ObjectFormat


class ALMA(ObjectFormat):
    """Rows of one text in several languages, by language code."""

    shape = '{"translation": {"de", "en"}}'

    def fits(self, row: Mapping[str, object]) -> bool:
        """An object under `translation`."""
        return isinstance(row.get("translation"), dict)

    def content(self, row: Mapping[str, object]) -> Mapping[str, object]:
        """The texts by language code."""
        texts = row.get("translation")
        if not isinstance(texts, dict):
            raise BadRow("no object under 'translation'")
        return texts
