#compdef understudy
local -a words_offered
words_offered=(${(f)"$(understudy complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
if (( $#words_offered )); then compadd -a words_offered; else _files; fi
