.PHONY: check style test

check:  ## what .ci/run checks before the tests
	ruff check .
	ruff format --check .

style:  ## rewrite the tree in the project's style
	ruff check --fix .
	ruff format .

test:
	pytest -n 2
