"""What .ci/run does is what the README tells a newcomer to do."""

from document_helpers import code_blocks, shell_commands, text_of


def test_ci_installs_tests_and_runs_as_the_readme_says():
    first, second = (list(shell_commands(block)) for block in code_blocks("README.md", "bash")[:2])
    ci = list(shell_commands(text_of(".ci/run").partition("step() {")[2].partition("\n")[2]))
    install, job = first[-2:]
    assert install[:2] == ["pip", "install"] and job[:2] == ["hf-vaq", "train"]
    assert any(words[:2] == install[:2] and words[-2:] == install[-2:] for words in ci)
    assert any(words[: len(job)] == job for words in ci)
    assert any(words[: len(second[-1])] == second[-1] for words in ci)
