if [ a = b ];then
echo   x
fi
