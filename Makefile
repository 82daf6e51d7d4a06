.PHONY: check style test docs

check:  ## what .ci/run checks before the tests
	ruff check .
	ruff format --check .

style:  ## rewrite the tree in the project's style
	ruff check --fix .
	ruff format .

test:
	pytest -n 2

docs:  ## the documentation as a site in site/; a missing page, link or anchor is an error
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict
