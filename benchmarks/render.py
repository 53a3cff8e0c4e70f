"""Render the tables of scores and measurements from JSON files: `make results`. Nothing is measured.

`benchmarks/RESULTS.md` is rendered as a whole. In other pages the lines between `<!-- results: NAME -->` and
`<!-- end of results -->` are.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import scores
import trade_off
from exactness import cache_table, catalogue_table, converted_table, padding_table, serving_table
from family_tables import TITLES, family_blocks
from results import results_page

ROOT = Path(__file__).parents[1]
_DOCS = [f"docs/{name}.md" for name in ("converting", "exactness", "fields", "instead", "models", "serving")]
_FAMILIES = [f"docs/families/{name.lower()}.md" for name in ("index", *TITLES)]
PAGES = ("README.md", "recipes/README.md", *_DOCS, *_FAMILIES)
_BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def blocks() -> dict[str, list[str]]:
    """Return the lines of each block by its name."""
    found = scores.load_scores()
    return {
        "highlights": scores.highlights(found),
        "recipes": scores.recipes(found),
        "fields": scores.fields(found),
        "better_baselines": scores.better_baselines(found),
        "padding": padding_table(),
        "cache": cache_table(),
        "catalogue": catalogue_table(),
        "converted": converted_table(),
        "serving": serving_table(),
    } | family_blocks()


def families_picture() -> str:
    """Draw quality against latency of all families and Transformers on TREC."""
    table = scores.read_table(ROOT / "recipes" / "comparisons" / "trec.csv")
    models = trade_off.points(table, others=("Transformer", "MiniLM-L6"))
    title = "Six kinds of questions (TREC): quality against latency"
    return trade_off.picture(models, title, "accuracy, %", "hfseq, from scratch", "Transformers")


def fill(text: str, found: Mapping[str, list[str]]) -> str:
    """Replace the blocks of a page.

    Raises:
        KeyError: The page names a block that does not exist.
    """
    return _BLOCK.sub(lambda match: f"{match[1]}\n{chr(10).join(found[match[2]])}\n\n{match[3]}", text)


def rendered() -> dict[Path, str]:
    """Return the text of every page that shows figures."""
    found = blocks()
    pages = {ROOT / page: fill((ROOT / page).read_text(encoding="utf-8"), found) for page in PAGES}
    pages[ROOT / "docs" / "images" / "families.svg"] = families_picture()
    return pages | {ROOT / "benchmarks" / "RESULTS.md": results_page(ROOT / "benchmarks")}


def main() -> None:
    """Write the pages."""
    for path, text in rendered().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
