complete -c understudy -a '(understudy complete -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
