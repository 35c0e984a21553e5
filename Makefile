# Each target is a list of steps; what they do stands in ci/steps.sh. They run as any user and read nothing from stdin.

.PHONY: test lint demo bench soak tools

# Everything that must hold before a change is taken: 25 minutes from cold on two cores, a few when warm.
test: tools
	@ci/steps.sh fmt clippy image deny deploy tests docs release demo peers breaker cache

# The quick half.
lint:
	@ci/steps.sh fmt clippy image deny

# One process: normal, outage, stale reads and queued writes, recovery, told step by step.
demo:
	@ci/steps.sh release demo

# Side by side with plain proxies, other caches and other breakers, full rounds. Figures go to docs/MEASURED.md.
bench: tools
	@ci/steps.sh bench

# All tests with their full counts; an hour and more.
soak: tools
	@ci/steps.sh soak loom bench

# Installs what is missing, where it can.
tools:
	@ci/tools.sh
