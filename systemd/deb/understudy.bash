_understudy() {
	local IFS=$'\n'
	COMPREPLY=($(understudy complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _understudy understudy
