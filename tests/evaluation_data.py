"""Writes questions in the CSV layouts of two public test suites."""

CEVAL = "id,question,A,B,C,D,answer\n0,塔恩的人养什么？,鹅,猫,马,狗,A\n1,6 + 9 = ?,12,15,9,3,B\n"
CMMLU = ',Question,A,B,C,D,Answer\n0,"What, then, is it?",a,b,c,"d, e",D\n'
