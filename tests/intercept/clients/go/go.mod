module toolweir.dev/tests/intercept

go 1.26
